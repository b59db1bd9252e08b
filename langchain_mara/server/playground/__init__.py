"""The page at `/`: a prompt, and its plain and aligned answers side by side."""
