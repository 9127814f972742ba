"""Time and accuracy of our engines and of the installed alternatives on this machine."""
