"""What people read: the screen, tables, plots, cards."""
