"""What every part uses: shapes, checks, the environment, errors. Imports nothing of dreluop but itself."""
