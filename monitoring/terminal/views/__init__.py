"""What the watch screen can show: one view a file. Views read and draw; they know nothing of the terminal's library."""
