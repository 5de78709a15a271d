"""What the user of a model has to know about the beton that it was trained on."""

import json
from pathlib import Path
from typing import Any

from ..datasets import DatasetSpec, sidecar_path


def metadata_of(spec: DatasetSpec, beton: Path) -> dict[str, Any]:
    """Return what is saved with a model trained on this beton: data set, mean, std (0-255), fit, class names, size.

    A beton without a sidecar file has the fit "square", no class names and no size ("beton_res").
    """
    sidecar = json.loads(sidecar_path(beton).read_text(encoding="utf-8")) if sidecar_path(beton).is_file() else {}
    size = {"beton_res": sidecar["res"]} if "res" in sidecar else {}
    return {
        "dataset": spec.name,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "fit": sidecar.get("fit", "square"),
        "classes": sidecar.get("classes", []),
        **size,
    }
