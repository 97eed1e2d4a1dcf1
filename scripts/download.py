from cifar_lit.main import main

raise SystemExit(main(command="download"))
