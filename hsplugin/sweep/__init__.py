"""``hsplugin sweep``: train many encoders, ask which metric predicts their accuracy."""
