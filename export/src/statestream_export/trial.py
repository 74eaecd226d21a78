"""A process that runs graphs in ONNX Runtime for another: some graphs end the process that loads or runs them.

Started as a script, so that it imports nothing else of this package. It reads a graph, then inputs again and again, and
writes outputs, or what ONNX Runtime said; it ends when nobody writes any more.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def main() -> None:
    """Serves the process that started this one."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What ONNX Runtime prints is no answer.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # What fails is raised; what warns is compared.
    session: Any = None
    while True:
        try:
            asked = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if session is None:
                session = onnxruntime.InferenceSession(asked, options, providers=["CPUExecutionProvider"])
                answer: Any = []
            else:
                answer = session.run(None, asked)
        except Exception as error:  # ONNX Runtime raises a class per status, all direct subclasses of Exception.
            answer = " ".join(str(error).split()) or type(error).__name__
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
