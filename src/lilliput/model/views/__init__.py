"""What a module does when it is called: its inputs, its graph, its calls, the values that flow, and its answers."""
