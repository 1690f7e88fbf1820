"""Threads of the BLAS that NumPy and scikit-learn call."""

from __future__ import annotations


class BlasThreads:
    """Mixin of the peers whose only parallel part is BLAS."""

    def set_threads(self, threads: int) -> bool:
        """Through threadpoolctl; without it the number stays as the environment set it."""
        try:
            import threadpoolctl
        except ImportError:
            return False
        threadpoolctl.threadpool_limits(limits=threads, user_api="blas")
        return True
