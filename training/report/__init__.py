"""What a run showed: tables, charts, one self-contained page."""
