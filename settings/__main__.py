"""`python -m settings`: docs/SETTINGS.md on standard output."""

from settings.page import page

if __name__ == "__main__":
    print(page(), end="")
