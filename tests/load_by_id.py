"""Logits of a model of the Hub at some revisions, without this package: `load_by_id.py ID REVISION ...`.

They go to logits.safetensors in the working folder.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path


def bare_python(folder: Path) -> Path:
    """An interpreter with everything that is installed here but this package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def main(repo_id: str, *revisions: str):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForSemanticSegmentation

    try:
        import allspark_hf
    except ImportError:
        pass
    else:
        sys.exit(f"the package must not be there, but is: {allspark_hf.__file__}")
    images = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)
    logits = {}
    for revision in revisions:
        model = AutoModelForSemanticSegmentation.from_pretrained(repo_id, trust_remote_code=True, revision=revision)
        with torch.no_grad():
            logits[revision] = model.eval()(images).logits.contiguous()
    save_file(logits, "logits.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
