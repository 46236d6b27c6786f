import six
from markupsafe import Markup, _speedups  # the compiled part


def main():
    assert six.PY3
    print(Markup("hello from Python: %s") % "<3")
