"""Sources that go wrong; in a module of their own, so that worker processes import nothing heavy for them."""

import os

from fastmlp.sources.base import ArraySource


class OneByOne(ArraySource):
    def get_batch(self, indices, res):
        return None


class Failing(OneByOne):
    fails = True

    def __getitem__(self, index):
        if index == 50 and self.fails:
            raise ValueError("picture50.jpg: cannot be read as an image")
        return super().__getitem__(index)


class Dying(OneByOne):
    fails = True

    def __getitem__(self, index):
        if index == 50 and self.fails:
            os._exit(9)  # as the kernel's out-of-memory killer would
        return super().__getitem__(index)
