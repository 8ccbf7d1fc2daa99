"""STAND-IN until the branch `cards` is merged, whose file replaces this one: a card with metadata and a heading."""

import json
import shutil
from pathlib import Path

import yaml
from PIL import Image


def write_model_card(
    folder: str | Path, repo_id: str | None = None, model_name: str | None = None, example_images=()
) -> Path:
    """Writes `folder/README.md`."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scratch = config.get("base_weights") == "none"
    for image in example_images:
        try:
            with Image.open(image) as opened:
                opened.verify()
        except OSError as error:
            raise ValueError(f"The example image {image} cannot be read ({error}): give an image file.") from error
        (folder / "examples").mkdir(exist_ok=True)
        shutil.copyfile(image, folder / "examples" / Path(image).name)
    data = {
        "license": "apache-2.0" if scratch else "other",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["allspark"],
        "widget": [{"src": f"examples/{Path(image).name}"} for image in example_images],
    }
    data = {name: value for name, value in data.items() if value}
    name = model_name or repo_id or folder.resolve().name
    figures = "".join(f"![{path.stem}](figures/{path.name})\n" for path in sorted(folder.glob("figures/*.png")))
    path = folder / "README.md"
    path.write_text(f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n\n# {name}\n\n{figures}", encoding="utf-8")
    return path


__all__ = ["write_model_card"]
