"""GELU or SiLU of one half times the other, dropout, and the linear map that follows."""
