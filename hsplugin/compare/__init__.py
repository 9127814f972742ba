"""``hsplugin compare``: train methods under one budget, compare their geometry and accuracy."""
