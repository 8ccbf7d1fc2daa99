"""Measures what freezing, checkpointing and the bottleneck cost with one encoder, on this machine.

    python scripts/benchmark_encoder.py --encoder facebook/dinov2-small
    python scripts/benchmark_encoder.py --encoder dinov2 --crop 224 --repeats 5      # random weights: no download

Updates of all variants take turns in one process; peak memory is taken in a fresh process for each. Random pixels.
"""

import json
import sys
from pathlib import Path


def main():
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--encoder", default="facebook/dinov2-small", help="Hub id, folder or model type.")
    parser.add_argument("--crop", type=int, default=518, help="Side of the crop in pixels.")
    parser.add_argument("--num_labels", type=int, default=21, help="Classes.")
    parser.add_argument("--batch_size", type=int, default=2, help="Labeled images; unlabeled ones come on top.")
    parser.add_argument("--repeats", type=int, default=5, help="Rounds that count.")
    parser.add_argument("--use_cpu", action="store_true", help="Measure on the CPU even if there is a GPU.")
    parser.add_argument("--output_file", type=Path, help="JSON file for all times.")
    given = vars(parser.parse_args())

    from allspark_hf.benchmarks.cases import find_device
    from allspark_hf.benchmarks.children import in_fresh_process
    from allspark_hf.benchmarks.encoders import EncoderCase, measure
    from allspark_hf.benchmarks.report import machine_lines
    from allspark_hf.benchmarks.results import describe_machine

    output_file, use_cpu = given.pop("output_file"), given.pop("use_cpu")
    try:
        device, case = find_device(use_cpu), EncoderCase(**given)
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    machine = in_fresh_process(device, describe_machine, device)
    results = measure(case, device)
    print("\n".join(machine_lines(machine)))
    print(
        f"{case.encoder}, crop {case.crop}, {case.num_labels} classes, batch {case.batch_size} (+ as many unlabeled)"
    )
    print(f"\n{'variant':<34}{'s / update':>12}{'ratio':>8}{'GiB more':>10}")
    for name, entry in results.items():
        if "error" in entry:
            print(f"{name:<34}  {entry['error']}")
            continue
        more = "-" if entry["extra"] is None else f"{entry['extra'] / 2**30:.2f}"
        print(f"{name:<34}{entry['seconds']['median']:>12.3f}{entry['ratio']:>8.2f}{more:>10}")
    if output_file is not None:
        output_file.write_text(json.dumps({"case": given, "machine": machine, "results": results}, indent=2))
    if any("error" in entry for entry in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
