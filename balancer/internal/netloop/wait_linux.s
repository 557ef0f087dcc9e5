// The body of goyield is the runtime's. The compiler takes a function without one only where there is an assembly file.
