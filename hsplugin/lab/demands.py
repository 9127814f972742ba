"""What settings demand of their data, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hsplugin.checks import listed
from hsplugin.errors import CommandError, remark
from hsplugin.lab.data import Images, load
from hsplugin.lab.methods import UNTRAINED
from hsplugin.lab.settings import Machine, RunSettings


def check_all(settings_list: Iterable[RunSettings], machine: Machine) -> None:
    """Read the data of runs, refuse what cannot be trained on it, and say what accuracy misses.

    Raises:
        CommandError: As `load` and `check`.
    """
    by_data: dict[tuple[str, int | None, int | None], list[RunSettings]] = {}
    for settings in settings_list:
        key = settings.data, settings.train_size, settings.image_size
        by_data.setdefault(key, []).append(settings)
    for (data, train_size, image_size), of_data in by_data.items():
        images = load(data, machine.data_dir, train_size, image_size)
        for settings in of_data:
            check(settings, images, machine.ranks)
        for split in ("validation", "test"):
            if missing := images.missing(getattr(images, split).labels):
                remark(
                    f"the {split} split of {data} has no image of {listed(missing)}; "
                    "its accuracies say nothing of them"
                )


def check(settings: RunSettings, images: Images, devices: int = 1) -> None:
    """Refuse a run that its data does not suffice for.

    Raises:
        CommandError: A single class, a class without training images or with fewer than the
            labels per class, or a batch larger than the data or too small for the devices.
    """
    labels = images.train.labels
    if images.classes < 2:
        raise CommandError(
            f"{settings.data} has one class, so accuracy means nothing; give two or more, each in "
            "a folder of its own"
        )
    if missing := images.missing(labels):
        remedy = f"--train-size {settings.train_size}: give more" if settings.train_size else ""
        raise CommandError(
            f"{settings.data} has no training image of {listed(missing)}; "
            f"{remedy or 'add some, or remove the classes'}"
        )
    counts: Tensor = labels.bincount()
    if settings.labels_per_class and settings.labels_per_class > counts.min():
        name = images.name_of(int(counts.argmin()))
        raise CommandError(
            f"--labels-per-class {settings.labels_per_class}: {name} of {settings.data} has only "
            f"{int(counts.min())} training images; give at most that, or 0 for all labels"
        )
    if settings.method == UNTRAINED:
        return
    # solo-learn is given the labelled images alone.
    count = len(images.train) if settings.framework == "solo" else images.pool_size
    if settings.batch_size > count:
        raise CommandError(
            f"--batch-size {settings.batch_size}: {settings.data} has {count} training images; "
            "give at most that"
        )
    if settings.batch_size < 2 * devices:
        raise CommandError(
            f"--batch-size {settings.batch_size}: {devices} devices need at least {2 * devices}, "
            "two images each"
        )
