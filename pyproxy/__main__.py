"""``python -m pyproxy``"""

from pyproxy.cli import main

if __name__ == "__main__":
    main(prog_name="python -m pyproxy")
