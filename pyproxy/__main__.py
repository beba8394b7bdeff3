"""``python -m pyproxy``"""

try:
    from pyproxy.cli import main
except KeyboardInterrupt:  # Ctrl-C while all that is imported: no traceback for that
    raise SystemExit(130) from None

if __name__ == "__main__":
    main(prog_name="python -m pyproxy")
