"""What the doctor looks at before a run: each check takes values, changes nothing, and returns findings."""
