"""The problems of a run: what of its files is missing, damaged, or not what the run says it is."""

from __future__ import annotations

from pathlib import Path

from tvgrad.errors import DamagedRun
from tvgrad.files.tensors import TensorFile
from tvgrad.store.gradient_sketches import read_sketch
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.manifest import FileEntry, Manifest


def run_problems(root: Path, manifest: Manifest, checksums: bool) -> list[str]:
    """Check every file of a run.

    Args:
        root: the run directory.
        manifest: what run.json says.
        checksums: read every byte; otherwise presence and size only.

    Returns:
        One sentence a problem; empty when all is well.
    """
    entries: list[FileEntry] = [entry for point in manifest.points for entry in point.files.values()]
    entries += [entry for entry in (manifest.static, manifest.state) if entry is not None]
    found = [problem for entry in entries for problem in entry.problems(root, checksums)]
    found += [problem for entry in entries for problem in entry.unlisted(root)]
    if not manifest.points:
        found.append("no epoch was finished")
    elif not any(point.number == 0 and "weights" in point.files for point in manifest.points):
        found.append(f"the pretrained weights ({manifest.unit} 0) are missing")
    for point in manifest.points:
        for kind in ("weights", *SKETCHED, *SKETCHED.values()):
            entry = point.files.get(kind)
            if entry is not None and not entry.problems(root, checksums):
                found += _misfits(root, root / entry.path, manifest, kind in SKETCHED.values())
    return found


def _misfits(root: Path, path: Path, manifest: Manifest, is_sketch: bool) -> list[str]:
    """What a file of tensors holds that the run cannot have written."""
    try:
        file = TensorFile(path, root)
        if is_sketch:
            read_sketch(file, manifest.parameters, manifest.sketch_width)
            return []
    except DamagedRun as error:
        return [str(error)]
    expected = {name: parameter.shape for name, parameter in manifest.parameters.items()}
    present = {name: place.shape for name, place in file.places.items()}
    return [] if expected == present else [f"{file.path.relative_to(root)} does not hold the run's parameters"]
