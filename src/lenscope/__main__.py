"""Start the command line as `python -m lenscope`. Knows: where it begins. Does not know: anything else."""

from lenscope.cli.main import main

if __name__ == "__main__":
    main()
