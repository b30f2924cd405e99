"""What a person types, a file for each command or small family of them; `cli` imports one only when it runs."""
