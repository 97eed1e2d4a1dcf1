from cifar_lit.benchmarks.report import main

raise SystemExit(main())
