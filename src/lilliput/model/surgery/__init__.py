"""What can be taken out of a module together: coupled slices, layers and blocks, and the configs that tell sizes."""
