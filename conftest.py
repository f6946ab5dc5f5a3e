"""Shared by all tests."""

# pytest names a test module after its folders, miles_core/tests/... included, and would take the folder of the repository for the
# package miles_core if that were not imported first.
import miles_core  # noqa: F401
