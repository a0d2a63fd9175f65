"""RecBLR Lab: Behavior-Dependent Linear Recurrent Units for sequential recommendation."""
