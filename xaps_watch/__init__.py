"""New-mail push to the Mail app of iPhones and iPads, for Dovecot servers with Maildirs, whatever delivers the mail."""

__version__ = "0.1.0"
