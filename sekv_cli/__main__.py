"""`python -m sekv_cli`: the same as the console script `sekv`."""

from sekv_cli.main import main

if __name__ == "__main__":
    main()
