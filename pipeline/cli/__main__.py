"""`python -m lotlip_data.pipeline.cli`: the same as `lotlip-data`."""

from lotlip_data.pipeline.cli.main import main

if __name__ == "__main__":
    main()
