// hello: memory of other processes in C++.
//
//     c++ -std=c++17 hello.cpp $(pkg-config --cflags --libs libdmce) -o hello
#include <libdmce.hpp>

#include <algorithm>
#include <iostream>
#include <string>

static void greet()
{
    // A private instance is started if there is no broker.
    const dmce::session session(dmce::options().spawn());

    // Memory of this session: it goes when the vector ends. In a 32-bit program it can be larger
    // than the address space.
    dmce::vector<char> text(session);
    text.append("not my memory", 13);
    std::cout << std::string(text.begin(), text.end()) << '\n';

    // A region has a name, outlives its sessions, and is shared with whoever may open it.
    dmce::region::create(session, "demo", "greeting", 1 << 16);
    const dmce::region region(session, "demo", "greeting");
    const dmce::ptr<char> first = region.at<char>(0);
    std::copy_n("hello", 5, first);
    std::cout << std::string(first, first + 5) << '\n';
    dmce::region::remove(session, "demo", "greeting");
}

int main()
{
    try {
        greet();
        return 0;
    } catch (const dmce::error &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
