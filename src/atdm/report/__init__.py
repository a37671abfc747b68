"""Pages with tables and figures, and the robustness report over a set of models."""

from .page import Better, Row, Section, Table, finite, machine, markdown, render, show

__all__ = ["Better", "Row", "Section", "Table", "finite", "machine", "markdown", "render", "show"]
