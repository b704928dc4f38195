"""`python -m cca_ray VERB ...`, as `cca-ray VERB ...`."""

from cca_ray.cli import main

if __name__ == "__main__":
    main()
