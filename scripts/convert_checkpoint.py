"""Converts a checkpoint of the AllSpark authors to a folder that `from_pretrained` loads.

    python scripts/convert_checkpoint.py CHECKPOINT OUTPUT_DIR

Class names are not in the checkpoint: give them with --classes FILE (classes.txt or classes.json).
"""

import argparse

from huggingface_hub.errors import StrictDataclassError

from allspark_hf.data import read_classes
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.conversion import convert_state_dict, read_checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the authors' .pth: a state dict or their training checkpoint")
    parser.add_argument("output_dir", help="folder to write config.json, model.safetensors, preprocessor_config.json")
    parser.add_argument("--classes", help="file with the class names, in the order of the class indices")
    args = parser.parse_args()

    try:
        names = read_classes(args.classes).names if args.classes else None
        model = convert_state_dict(read_checkpoint(args.checkpoint), names)
    except (OSError, ValueError, StrictDataclassError) as error:
        parser.exit(2, f"{error}\n")
    model.save_pretrained(args.output_dir)
    # The authors evaluate whole images, normalized and not resized.
    make_image_processor().save_pretrained(args.output_dir)
    config = model.config
    print(
        f"Wrote {args.output_dir}: hidden_sizes {list(config.hidden_sizes)}, depths {list(config.depths)}, "
        f"{config.num_labels} classes, crop {config.crop_size}, {config.channel_attention_heads} bottleneck heads."
    )


if __name__ == "__main__":
    main()
