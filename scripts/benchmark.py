"""`allspark benchmark` as a file, for those who have a checkout, and launchers that start a file."""

from allspark_hf.cli.main import main


if __name__ == "__main__":
    main("benchmark")
