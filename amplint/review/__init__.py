"""The code review bot: findings as comments on the lines that a pull or merge request changes."""
