// Package flask is a Flask service behind Rota: run by "rota register", or registered from Python by register.py. There is no
// Go in it but the tests, which run what README.md tells to run; those that need Flask and gunicorn skip without them.
package flask
