"""Damaged files of every format end in a value or in one line, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hsplugin.readers import READERS
from tests.measure.test_layouts import WRITERS

MUTANTS = 1000
MOST_SECONDS = 20
MOST_BYTES = 3 * 2**30

# Reads all that it is told of; what no CommandError reports ends the process with a traceback.
WORKER = """
import faulthandler, json, resource, sys
from pathlib import Path
from hsplugin.errors import CommandError
from hsplugin.readers import find_array
from hsplugin.measure.rows import known_labels, tensor_of
import pyarrow, pyarrow.csv, pyarrow.parquet, h5py, safetensors.torch, torch

def refuse(event, arguments):
    if event in ("os.system", "subprocess.Popen", "os.exec", "socket.connect") or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    ):
        faulthandler.dump_traceback()
        sys.stderr.write(f"a file made Python do {event} {arguments}")
        sys.exit(3)

sys.addaudithook(refuse)
most_seconds, most_bytes = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
for line in sys.stdin:
    path, key, pool = json.loads(line)
    faulthandler.dump_traceback_later(most_seconds, exit=True)
    ending = "read"
    try:
        array = find_array(Path(path), key, dimensions=2, purpose="features", pool=pool)
        known_labels(Path(path), array)
        done = 0
        for chunk in array.chunks(4096):
            tensor_of(array, chunk, done, "cpu")
            done += len(chunk)
    except CommandError as error:
        ending = "refused"
        assert str(error).isprintable() and len(str(error)) < 5000, str(error)[:500]
    faulthandler.cancel_dump_traceback_later()
    print(ending, flush=True)
"""


def mutant(content, random):
    """A copy with bits flipped, a piece cut out, a piece put in, or without its end."""
    changed = bytearray(content)
    # Most of a file is values; where it says what it holds, a change tells more.
    place = int(
        random.choice([random.integers(len(content)), random.integers(min(256, len(content)))])
    )
    if random.random() < 0.3:
        place = len(content) - 1 - min(place, 512) % len(content)
    size = int(random.integers(1, 9))
    match random.integers(5):
        case 0:
            for _ in range(size):
                at = int(random.integers(max(0, place - 16), min(len(content), place + 16)))
                changed[at] ^= 1 << int(random.integers(8))
        case 1:
            del changed[place : place + size]
        case 2:
            changed[place:place] = random.bytes(size)
        case 3:
            changed[place : place + size] = b"\xff" * size
        case 4:
            del changed[max(1, place) :]
    return bytes(changed)


def test_every_format_has_a_layout():
    written = {suffix for p in WRITERS for suffix in READERS if p.values[1].endswith(suffix)}
    alike = {".bvecs", ".u8bin", ".i8bin", ".hdf5", ".h5ad", ".ipc", ".ndjson"}
    assert written | alike == set(READERS)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(tmp_path):
    random = np.random.default_rng(0)
    samples = []
    for number, parameters in enumerate(WRITERS):
        write, name, key, pool = parameters.values
        path = tmp_path / str(number) / name
        if not path.suffix:
            continue
        path.parent.mkdir()
        write(path)
        samples.append((path, path.read_bytes(), key, pool))
    asked = []
    for number in range(MUTANTS):
        path, content, key, pool = samples[number % len(samples)]
        # A folder of its own: an index names files beside it.
        changed = path.with_name(f"{number}-{path.name}")
        changed.write_bytes(mutant(content, random))
        asked.append([str(changed), key, pool])
    endings = []
    while len(endings) < len(asked):
        worker = subprocess.run(
            [sys.executable, "-c", WORKER, str(MOST_SECONDS), str(MOST_BYTES)],
            input="".join(json.dumps(line) + "\n" for line in asked[len(endings) :]),
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        endings += worker.stdout.split()
        if worker.returncode:
            pytest.fail(f"{asked[len(endings)]}: {worker.returncode}: {worker.stderr[-3000:]}")
    assert endings.count("read") > MUTANTS // 20
    assert endings.count("refused") > MUTANTS // 4
