"""Memory: the forms of `Rows`, in this process's memory and on a device."""
