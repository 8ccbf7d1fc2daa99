"""Measures speed and memory on this machine: all methods, AllSpark as in a textbook, UniMatch V2 as a plain script.

    allspark benchmark                                        # a few minutes on two CPU cores
    allspark benchmark --full                                 # hours: B0 to B5, crops, classes, memory sizes
    allspark benchmark --sizes b5 --crops 513 --precisions bf16 --cases step inference

The textbook form (whole attention maps, memory written in a Python loop) stands in for the authors' code. What is
compared takes turns in one process; peak memory is taken in a fresh process for each variant. Prints ratios, absolute
figures and the project's targets; writes them as JSON after every measurement, and a plot of memory beside it. A case
that runs out of memory is recorded as such. Random weights, generated images unless --data_dir is given.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace


def finish(results) -> None:
    """Targets, report, plot."""
    from allspark_hf.benchmarks.plot import write_plot
    from allspark_hf.benchmarks.report import machine_lines, report
    from allspark_hf.benchmarks.targets import check_targets

    results.targets = check_targets(results)
    results.write()
    print("\n" + "\n".join(machine_lines(results.machine)) + "\n\n" + report(results) + "\n")
    print(f"Figures: {results.output_file}")
    try:
        for path in write_plot(results, results.output_file.parent, results.output_file.stem):
            print(f"Plot: {path}")
    except ImportError as error:
        print(f"No plot: {error}")


def main():
    # Imported here, because measuring processes import this file too, and must hold nothing that they do not need.
    from allspark_hf.benchmarks.arguments import BenchmarkArguments
    from allspark_hf.benchmarks.cases import find_device
    from allspark_hf.benchmarks.children import in_fresh_process
    from allspark_hf.benchmarks.peak import can_measure
    from allspark_hf.benchmarks.results import Results, describe_machine
    from allspark_hf.benchmarks.running import plan, run
    from allspark_hf.cli.arguments import parse_arguments

    try:
        (arguments,) = parse_arguments((BenchmarkArguments,))
        device = find_device(arguments.use_cpu)
        with_memory = can_measure(device)
        jobs = plan(arguments, with_memory)
        machine = in_fresh_process(device, describe_machine, device)
        if "error" in machine:
            raise ValueError(f"The device {device} cannot be used: {machine['error']}")
        output_file = Path(arguments.output_file)
        output_file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if not with_memory:
        print("Peak memory is not measured: that needs a GPU, or Linux with glibc.")
    measured = Results(asdict(arguments), machine, output_file)
    # A measuring process need not import anything to unpickle a namespace.
    run(jobs, measured, device, SimpleNamespace(**vars(arguments)))
    finish(measured)
    failures = measured.failures()
    if failures:
        sys.exit("Failed, and not for want of memory:\n" + "\n".join(failures))
