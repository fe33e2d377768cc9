"""Reports: tables and figures made of run directories alone."""
