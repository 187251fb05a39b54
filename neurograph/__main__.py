"""`python -m neurograph`: the command line, where its script is not on the path."""

from neurograph.cli.main import main

if __name__ == "__main__":
    main()
