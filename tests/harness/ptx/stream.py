"""A stream, and graphs that are captured on it."""


class Stream:
    """Runs each item immediately, or keeps it for the graph that is being captured."""

    def __init__(self):
        self.count = 0
        self.captured = None

    def enqueue(self, work):
        self.count += 1
        if self.captured is None:
            work()
        else:
            self.captured.append(work)


class Graph:
    """Like torch.cuda.CUDAGraph."""

    def __init__(self, stream):
        self._stream = stream
        self._works = []

    def begin(self):
        assert self._stream.captured is None, "a graph is being captured already"
        self._stream.captured = self._works

    def end(self):
        self._stream.captured = None

    def replay(self):
        for work in self._works:
            work()
