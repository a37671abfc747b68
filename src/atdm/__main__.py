"""``python -m atdm``, which is also how ``accelerate launch -m atdm`` starts it."""

from .cli import main

if __name__ == "__main__":
    main()
