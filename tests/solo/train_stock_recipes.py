"""Train every stock CIFAR recipe for a few steps, in one process; run by test_monitor.py.

python train_stock_recipes.py CHECKOUT IMAGES OUT: writes OUT/METHOD.pt with the weights and what
forward returned for the crops of the last epoch's first batch, and OUT/METHOD.json with what was
logged, and what the monitor measured and refused.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra

# Narrower than stock, so that nineteen of them take a minute; the recipe is otherwise as it is.
NARROW: dict[str, list[str]] = {
    "mae": [
        "backbone.name=vit_tiny",
        "method_kwargs.decoder_embed_dim=32",
        "method_kwargs.decoder_depth=1",
        "method_kwargs.decoder_num_heads=2",
    ],
    "dino": ["method_kwargs.num_prototypes=64"],
    "deepclusterv2": ["method_kwargs.num_prototypes=[6,6,6]"],
    "wmse": ["method_kwargs.whitening_size=8"],
}


def overrides(method: str, images: Path, keys: set[str]) -> list[str]:
    narrow = {
        "proj_hidden_dim": 64,
        "pred_hidden_dim": 64,
        "proj_output_dim": 4 if method == "wmse" else 32,
        "queue_size": 64,
    }
    return [
        f"data.train_path={images / 'train'}",
        f"data.val_path={images / 'val'}",
        "data.dataset=custom",
        "data.format=image_folder",
        "data.num_workers=0",
        "optimizer.batch_size=16",
        "max_epochs=2",
        "accelerator=cpu",
        'devices="1"',
        "sync_batchnorm=False",
        "precision=32",
        "strategy=auto",
        "wandb.enabled=False",
        "checkpoint.enabled=False",
        "auto_resume.enabled=False",
        "+limit_val_batches=0",
        "+enable_progress_bar=False",
        "+enable_model_summary=False",
        "+log_every_n_steps=1",
        *(f"method_kwargs.{key}={value}" for key, value in narrow.items() if key in keys),
        *NARROW.get(method, []),
    ]


def train(recipe: Path, images: Path, out: Path) -> None:
    import main_pretrain

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(recipe.parent), version_base="1.2"):
        keys = set(hydra.compose(recipe.stem).get("method_kwargs", {}))
        cfg = hydra.compose(recipe.stem, overrides(recipe.stem, images, keys))
    models: list[Any] = []
    measured: list[str] = []
    embeddings: list[torch.Tensor] = []
    logged: dict[str, float] = {}
    fit = main_pretrain.Trainer.fit

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if recipe.stem == "dino":  # "z" holds scores
            embeddings.append(inputs[0].detach().clone())
        elif recipe.stem == "mae":  # there is no "z", but the backbone returns features and more
            embeddings.append(output[0].detach().clone())
        elif isinstance(output, dict) and "z" in output:
            embeddings.append(output["z"].detach().clone())

    def watched(self: Any, model: Any, *rest: Any, **named: Any) -> None:
        models.append(model)
        part = {"dino": "head.last_layer", "mae": "backbone"}.get(recipe.stem, "")
        model.get_submodule(part).register_forward_hook(keep)
        fit(self, model, *rest, **named)
        measured.extend(c.measured for c in self.callbacks if hasattr(c, "measured"))
        logged.update({key: float(value) for key, value in self.callback_metrics.items()})

    main_pretrain.Trainer.fit = watched
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            main_pretrain.main.__wrapped__(cfg)
    finally:
        main_pretrain.Trainer.fit = fit
    half = len(embeddings) // 2
    torch.save(
        {"weights": models[0].state_dict(), "embeddings": embeddings[half : half + 2]},
        out / f"{recipe.stem}.pt",
    )
    refusals = sorted({str(w.message) for w in caught if "monitor" in str(w.message)})
    report = {"measured": "; ".join(measured), "logged": logged, "refusals": refusals}
    (out / f"{recipe.stem}.json").write_text(json.dumps(report))


def main(checkout: Path, images: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    for recipe in sorted((checkout / "scripts" / "pretrain" / "cifar").glob("*.yaml")):
        train(recipe, images, out)


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
