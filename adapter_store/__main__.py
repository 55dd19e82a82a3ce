from adapter_store.app import main

main()
