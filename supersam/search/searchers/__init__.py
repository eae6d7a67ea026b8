"""Who proposes subnets: several searchers behind one interface."""

from supersam.search.searchers.base import Problem, Searcher
from supersam.search.searchers.registry import build_searcher, pose_problem

__all__ = ["Problem", "Searcher", "build_searcher", "pose_problem"]
