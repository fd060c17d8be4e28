"""`python -m t5x_scale <command>`."""

from t5x_scale.main import console_entry

if __name__ == "__main__":
    console_entry()
