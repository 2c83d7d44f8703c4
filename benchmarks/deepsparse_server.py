"""DeepSparse in a process of its own, with the older Python packages it needs.

Started by `deepsparse_client.py` in another virtual environment; reads requests as JSON lines,
answers with JSON lines. A run is timed here, so that the pipe costs nothing.
"""

import json
import sys
import time

import numpy as np


def main() -> None:
    import deepsparse

    engines, answers = [], sys.stdout
    sys.stdout = sys.stderr  # DeepSparse greets; the pipe is for answers.
    for line in sys.stdin:
        request = json.loads(line)
        if "model" in request:
            inputs = [np.ascontiguousarray(np.load(request["input"]))]
            built = deepsparse.compile_model(
                request["model"], batch_size=len(inputs[0]), num_cores=request["threads"]
            )
            engines.append((built, inputs))
            np.save(request["output"], built.run(inputs)[0])
            answer = {"number": len(engines) - 1}
        else:
            built, inputs = engines[request["number"]]
            start = time.perf_counter()
            for _ in range(request["repeats"]):
                built.run(inputs, val_inp=False)
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
