from distpro_cli.tasks.classification import task as task
